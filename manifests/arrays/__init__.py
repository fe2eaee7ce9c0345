"""Array helpers without a home of their own: resampling, sRGB, vectors, assignment."""
