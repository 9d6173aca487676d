"""The player: a trace played in time, in a notebook and on a static page."""

from servelab.lab.player.player import STATIC, Player, player, player_fragment, player_html

__all__ = ["STATIC", "Player", "player", "player_fragment", "player_html"]
