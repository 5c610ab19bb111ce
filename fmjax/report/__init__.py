"""What a run shows: the solver comparison as data and words, figures, and one HTML page.

`comparison` and `advice` need nothing beyond the standard library; `images` loads Pillow,
and `style`, `plots`, `solver_plots` and `page` load matplotlib, `page` also jinja2: so
nothing is imported here.
"""
