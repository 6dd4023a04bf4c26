"""Running a network: views for sweeps, masks for viewers."""
