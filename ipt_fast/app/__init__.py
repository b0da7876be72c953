"""``ipt-fast app``: a page on this machine that restores one photo at a time; ``page`` alone needs Gradio."""
