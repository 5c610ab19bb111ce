"""One module per family of released networks: its config.json and its tensor names."""
