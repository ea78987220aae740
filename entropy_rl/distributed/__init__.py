"""Device meshes, sharding, and several processes."""
