"""Reports of runs: solver comparisons as data and text, figures, and an HTML page.

Nothing is imported here, to keep imports light: `comparison` and `advice` need only the standard
library; `images` loads Pillow; `style`, `plots`, `solver_plots` and `page` load matplotlib; `page`
also loads jinja2.
"""
