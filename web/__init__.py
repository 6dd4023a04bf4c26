"""What people see in a browser: our own files, and the packages they load."""
