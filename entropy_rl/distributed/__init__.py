"""Device meshes, sharding, several processes, and the memory of a host."""
