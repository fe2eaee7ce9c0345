"""Array helpers: resampling, sRGB transfer function, vector fields, linear assignment."""
