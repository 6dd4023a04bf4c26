"""The HTTP face: MONAI Label's endpoints, made safe and never blocking, and our own under /al."""
