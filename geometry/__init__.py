"""Cameras, rays, ray maps, meshes and normals, computed with numpy and torch; no files, no weights."""
