"""`fmjax report`: write the HTML report of a run or a study."""
