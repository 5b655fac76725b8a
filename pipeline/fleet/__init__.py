"""Many files, on several processes of one machine."""
