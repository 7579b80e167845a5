"""Downloads of the published models; nothing else here downloads."""
