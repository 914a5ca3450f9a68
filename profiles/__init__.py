"""What we know: models as operators, machines as measured curves. Imports nothing of the other packages."""
