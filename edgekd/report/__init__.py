"""The report: report.json (typed), and the Markdown, HTML and JUnit files that are drawn from it."""
