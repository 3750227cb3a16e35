"""The only place that knows transformers. Read `families`, then `adapter`, then `processor`."""
