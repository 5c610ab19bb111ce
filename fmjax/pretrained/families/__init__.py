"""Config files and tensor layouts of released networks, one module per network family."""
