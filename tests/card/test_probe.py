import pytest
pytestmark = pytest.mark.host
G=2**30
@pytest.mark.parametrize("played", [
 f"{row}: {p}" for row in __import__("os").environ["ROWS"].split(",") for p in __import__("os").environ["PLAYS"].split(",")], indirect=True)
def test_show(played):
    for r in played:
        print('##', r.action, '| ERR '+r.error[:400] if r.error else "")
        print('   up %.3f down %.3f GiB live %.2f'%(r.up/G, r.down/G, r.live/G), 'launched', sum(r.launches.values()), 'on card', {k: round(v/G,2) for k,v in r.on_card.items()}, r.patchers, 'graphs', [(g.launches,g.replays) for g in r.graphs], r.made)
        print('   ready', [(x.model, round(x.asked/G,2), round(x.used/G,2)) for x in r.readied])
        for c in sorted(r.copies, key=lambda c:-c[2])[:4]: print('     copy', c)
        for w,n in sorted(r.waits.items(), key=lambda c:-c[1])[:12]: print('     wait', n, w)
