"""The page at `/`: a chat that shows what each policy kept. Static files, and the route to them.

Start at `index.html`, then `main.js`, which wires one module for each concern: `api` (the server's
public endpoints), `attachments` and `camera` (images), `policies` (which are compared), `chat`
(turns and their columns), `words` (where answers differ), `positions` (what was kept, decoded),
`paint` and `picture` (the same, drawn), `status` (the live figures).
"""
