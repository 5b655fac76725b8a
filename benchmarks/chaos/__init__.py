"""Live sources under faults: cameras that stamp their pictures with the true time, a faulty link, and scenarios."""
