"""Readers of frames beside PyAV on the CPU: decord, and PyAV with NVDEC; and the check of their frames."""
