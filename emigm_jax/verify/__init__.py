"""Whether this machine makes the numbers it should: recordings, meshes, seeds, attention."""
