"""The paper's tables beside ours."""

from ipt_fast.evaluation.paper import ALIASES, CELLS, TITLES, find_paper_sets, table_rows


def test_every_cell_belongs_to_a_table_a_set_and_a_task():
    assert {cell.table for cell in CELLS} == set(TITLES)
    assert {cell.image_set for cell in CELLS} == set(ALIASES)
    assert len({(cell.image_set, cell.task) for cell in CELLS}) == len(CELLS) == 21
    for cell in CELLS:
        assert max(cell.paper, key=lambda name: cell.paper[name]) in ("IPT", "HAN")


def test_the_figures_of_ipt_are_those_of_the_paper():
    printed = {
        "sr2": (38.37, 34.43, 32.48, 33.76), "sr3": (34.81, 30.85, 29.38, 29.49), "sr4": (32.64, 29.01, 27.82, 27.26),
        "denoise30": (32.32, 33.75), "denoise50": (29.88, 31.12), "derain": (41.62,),
        "denoise10": (38.30, 39.07), "denoise70": (28.21, 28.80),
    }  # fmt: skip
    found = {task: tuple(cell.paper["IPT"] for cell in CELLS if cell.task == task) for task in printed}
    assert found == printed


def test_sets_are_found_in_the_usual_places(tmp_path):
    for folder in ("Set5", "benchmark/Urban100", "BSD100", "other"):
        (tmp_path / folder).mkdir(parents=True)
    found = find_paper_sets([tmp_path])
    assert set(found) == {"Set5", "Urban100", "B100"} and found["B100"].name == "BSD100"
    assert find_paper_sets([tmp_path / "Set5"]) == {"Set5": tmp_path / "Set5"}
    assert find_paper_sets([tmp_path / "other"]) == {}


def test_rows_have_empty_cells_where_a_figure_is_missing():
    ours = {("CBSD68", "denoise30"): {"input (ours)": 23.456, "a.pt": 31.0}, ("CBSD68", "denoise50"): {"a.pt": 29.004}}
    columns, rows = table_rows(2, ours, ["input (ours)", "a.pt"])
    assert columns == ["set", "task", "DnCNN (paper)", "RDN (paper)", "IPT (paper)", "input (ours)", "a.pt"]
    assert rows[0] == ["CBSD68", "denoise30", "30.40", "30.67", "32.32", "23.46", "31.00"]
    assert rows[1] == ["Urban100", "denoise30", "30.28", "31.69", "33.75", "", ""]
    assert rows[2][-2:] == ["", "29.00"]
