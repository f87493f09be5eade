"""What holds for every test."""

import os

# Messages are compared in English, whatever the developer's locale.
os.environ["XCITE_LANG"] = "en"
