from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmrh_retriever import Page, PatchGrid, Region, ScoredPage, ScoredRegion
from mmrh_retriever.errors import PageError, SettingsError
from mmrh_retriever.explain import attention_array, draw_regions, full_colour, heat, heat_map, save_heat_map
from tests.explain.scored_pages import one_hot, scored_page, white

BOX_COLOUR = (16, 78, 139)


class TestAttentionArray:
    def test_each_cell_holds_its_token(self):
        found = attention_array(scored_page(one_hot(6)))
        assert found.shape == (4, 4)
        assert found[1, 2] == pytest.approx(0.01)
        assert attention_array(scored_page(one_hot(6)), shape=(2, 2)).tolist() == [[0, pytest.approx(0.01)], [0, 0]]

    def test_its_former_name_goes_on_working(self):
        with pytest.warns(DeprecationWarning, match="attention_array"):
            found = heat(scored_page(one_hot(6)), shape=(2, 2))
        assert np.array_equal(found, attention_array(scored_page(one_hot(6)), shape=(2, 2)))

    def test_a_page_without_token_scores_says_how_to_get_them(self):
        plain = ScoredPage(Page(image=white(), doc_id="a.pdf", index=1), 0.1, 1, 0)
        for asked in (attention_array, heat_map):
            with pytest.raises(PageError, match=r"page 2 of a\.pdf.*with_tokens=True") as caught:
                asked(plain)
            assert caught.value.page == 1


class TestHeatMap:
    def test_colour_stands_where_the_attention_went_and_only_there(self):
        drawn = heat_map(scored_page(one_hot(6)))
        assert drawn.mode == "RGB"
        assert drawn.size == (400, 400)
        red, green, blue = drawn.getpixel((250, 150))  # the middle of the token
        assert red > 150 > max(green, blue)
        assert drawn.getpixel((50, 350)) == (255, 255, 255)

    def test_negative_scores_have_no_colour(self):
        assert heat_map(scored_page(-one_hot(6))).getcolors() == [(160_000, (255, 255, 255))]
        assert heat_map(scored_page()).getcolors() == [(160_000, (255, 255, 255))]

    def test_the_page_stays_in_its_greys(self):
        image = Image.new("RGB", (400, 400), (200, 30, 30))
        red, green, blue = heat_map(scored_page(image=image)).getpixel((5, 5))
        assert red == green == blue

    def test_under_one_scale_a_weaker_page_is_paler(self):
        weak, strong = scored_page(one_hot(5, 0.002)), scored_page(one_hot(5, 0.01))
        scale = full_colour([weak, strong])
        assert scale == pytest.approx(full_colour([strong]))
        pale, full = (heat_map(page, scale=scale).getpixel((150, 150)) for page in (weak, strong))
        assert pale[2] > full[2]
        assert heat_map(weak).getpixel((150, 150)) == full

    def test_the_scale_does_not_depend_on_the_number_of_tokens(self):
        coarse = ScoredPage(Page(image=white()), 0.1, 1, 0, np.full(4, 0.04, np.float32), PatchGrid.regular(2, 2))
        assert full_colour([coarse]) == pytest.approx(0.16)
        assert full_colour([scored_page(np.full(16, 0.01))]) == pytest.approx(0.16)
        assert full_colour([ScoredPage(Page(text="words"), 0.1, 1, 0)]) == 0.0

    def test_sizes(self):
        assert heat_map(scored_page(image=white((600, 300))), max_side=200).size == (200, 100)
        assert heat_map(scored_page(image=white((32, 16)))).size == (320, 160)

    def test_no_opacity_leaves_the_page(self):
        assert heat_map(scored_page(one_hot(3)), opacity=0.0).getcolors() == [(160_000, (255, 255, 255))]
        with pytest.raises(SettingsError, match="0 to 1"):
            heat_map(scored_page(), opacity=2.0)

    def test_only_the_pages_own_boxes_are_drawn(self):
        scored, other = scored_page(), scored_page()
        region = Region((100, 100, 300, 200))
        plain = heat_map(scored)
        assert heat_map(scored, regions=[ScoredRegion(other.page, region, 0.1, 1)]) == plain
        assert heat_map(scored, regions=[ScoredRegion(scored.page, region, 0.1, 1)]) != plain

    def test_save_writes_by_ending_and_makes_folders(self, tmp_path):
        for name in ("a.png", "b.jpg", "c.webp"):
            path = save_heat_map(scored_page(one_hot(2)), tmp_path / "maps" / name, max_side=200)
            assert path == tmp_path / "maps" / name
            with Image.open(path) as image:
                assert image.size == (200, 200)

    def test_save_refuses_other_endings(self, tmp_path):
        with pytest.raises(PageError, match=r"'map\.txt'.*\.png"):
            save_heat_map(scored_page(), tmp_path / "map.txt")
        assert not list(tmp_path.iterdir())


class TestDrawRegions:
    def test_the_line_runs_around_the_box_in_page_units(self):
        page = Page(image=white(), size=(200.0, 100.0))
        drawn = draw_regions(white((1000, 500)), [ScoredRegion(page, Region((50, 25, 150, 75)), 0.5, 1)])
        assert drawn.getpixel((500, 123)) == BOX_COLOUR  # above the upper edge at 125
        assert drawn.getpixel((500, 127)) == (255, 255, 255)
        assert drawn.getpixel((500, 250)) == (255, 255, 255)

    @pytest.mark.parametrize("box", [(0, 0, 200, 100), (-20, -20, 30, 30), (190, 95, 260, 160)])
    def test_labels_stay_on_the_page(self, box):
        page = Page(image=white(), size=(200.0, 100.0))
        drawn = draw_regions(white((1000, 500)), [ScoredRegion(page, Region(box), 0.5, 123)])
        assert drawn.size == (1000, 500)
        blue = sum(count for count, colour in drawn.getcolors(1 << 20) if colour == BOX_COLOUR)
        assert blue > 600  # the label is there

    def test_a_page_without_a_size_is_refused(self):
        page = Page(text="words")
        with pytest.raises(PageError, match="no size"):
            draw_regions(white(), [ScoredRegion(page, Region((0, 0, 1, 1)), 0.5, 1)])
