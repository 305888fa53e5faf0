"""``python -m gp_rangeformer.lab.gallery``: the notebooks of ``examples/`` from their percent scripts, and their page.

    examples/NN_name.py  ->  examples/NN_name.ipynb, examples/figures/thumbnails/NN_name.png, examples/guide/gallery.md

A script is jupytext's percent format. Its first cell is text: the title, and one sentence that says what the cells
show. A cell tagged ``parameters`` assigns sizes, and ``small={"N": 200}`` beside the tag says which serve a quick run;
the figure of the cell tagged ``thumbnail`` stands for the notebook on the page.
"""
