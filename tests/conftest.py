"""What holds for all tests."""

import os

# as the command line does (openuni/cli.py), before anything loads torch: the machine may be busy with other work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
