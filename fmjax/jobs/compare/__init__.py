"""`fmjax compare RUN`: compare fixed and adaptive solvers on one velocity field."""
