"""Open a page to try a model in the browser.

    pip install -e ".[app]"
    python examples/app.py --model outputs/quickstart/final

The code of the page lies in `geoalign_hf/hub/space/app.py`. `geoalign-hf push --space NAME` uploads it.
"""

import runpy
from importlib.resources import files

if __name__ == "__main__":
    runpy.run_path(str(files("geoalign_hf") / "hub" / "space" / "app.py"), run_name="__main__")
