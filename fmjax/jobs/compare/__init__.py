"""`fmjax compare RUN`: fixed and adaptive solvers on one velocity field."""
