"""The curator's page: a local server of scores, pictures and verdicts, and the page that judges in the browser."""
