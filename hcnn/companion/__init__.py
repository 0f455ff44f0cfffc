"""What belongs to the paper rather than to the method: compared networks, tables, interpretation, speed, figures,
notebooks.
"""

from hcnn.companion import baselines  # noqa: F401  their variants are known from here on
