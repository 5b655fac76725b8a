"""Many files, on several processes of one machine or on the machines of a Ray cluster."""
