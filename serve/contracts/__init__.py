"""One file per family of clients: what they send, and what they expect back."""
