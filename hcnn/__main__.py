"""python -m hcnn: the commands of `companion.commands`."""

import sys

if __name__ == "__main__":
    try:
        from hcnn.companion.commands import main
        sys.exit(main())
    except ModuleNotFoundError as error:
        name = error.name.partition(".")[0].replace("sklearn", "scikit-learn")
        sys.exit(f"error: this needs {name}, which is not installed: pip install {name}")
