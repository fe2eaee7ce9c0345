"""Rendering: cameras, shapes, textures, rays, shading, layers."""
