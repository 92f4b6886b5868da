"""Cameras, rays, meshes and normals: the leaf every part stands on (torch and numpy only)."""
