"""Pages in one HTML file that contains its videos, images, style and script, and needs no network."""
