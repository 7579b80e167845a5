"""Downloads of the published models; nothing else here opens a connection."""
