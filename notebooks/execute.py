"""Execute the notebooks with other parameters, or all of them in turn: see `python notebooks/execute.py --help`."""

import signal
import sys

from hcnn.companion.notebooks.execute import main

if __name__ == "__main__":
    # as Ctrl-C: an end after which the kernel is not left alone
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
