"""python -m hcnn: the commands of `companion.commands`."""

import sys

from hcnn.companion.commands import main

if __name__ == "__main__":
    sys.exit(main())
