"""Multi-image chats with a compressed KV cache, chosen per request (LOOK-M, arXiv 2406.18139)."""
