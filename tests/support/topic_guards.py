"""Guards of topics (rule T8), taken away one at a time."""

from __future__ import annotations

from mielin_cells.log.commit import Commit
from mielin_cells.log.ids import TOPICS
from mielin_cells.log.topics.outside import MADE, Page, PageTaking, judge_page, split
from mielin_cells.log.topics.posts import End, Post, Posting
from mielin_cells.log.topics.subs import Sub, Subs, Taking, after_undo
from mielin_cells.log.turns.batch import Batch
from mielin_cells.store.outside import PAGE
from mielin_cells.store.topics import read_end
from mielin_cells.substrate.ports import Log, Outcome, Outside
from mielin_cells.testing.simulator import store
from mielin_cells.testing.simulator.store import Store
from mielin_cells.testing.simulator.view import View
from support.guards import Patch, guard


@guard(within=100)
def numbers_say_what_is_stored(patch: Patch) -> None:
    """A publisher's new owner appends behind the end of its topic, without a look at the number there."""

    async def unnumbered(log: Log, subject: str, *, is_settled: bool) -> End:
        return (await read_end(log, subject, is_settled=is_settled))._replace(n=0)

    patch.setattr("mielin_cells.node.topics.publishing.read_end", unnumbered)


@guard(within=100)
def a_conflict_is_no_success(patch: Patch) -> None:
    """A publisher that meets a conflict takes its own message for stored."""

    def landed(self: Posting, there: End) -> bool:
        if self.flying is not None:
            self.end, self.flying = there._replace(n=max(there.n, self.flying.last)), None
        return False

    patch.setattr(Posting, "met_conflict", landed)


@guard(within=100)
def messages_of_topics_expect_the_last(patch: Patch) -> None:
    """Messages are appended to topics without a condition."""
    append = View.append

    async def anyhow(
        self: View, subject: str, data: bytes, expect: int | None = None, owner: str | None = None
    ) -> Outcome:
        return await append(self, subject, data, None if subject.startswith(TOPICS) else expect, owner)

    patch.setattr(View, "append", anyhow)


@guard(within=100)
def gaps_are_told(patch: Patch) -> None:
    """What was removed before it was read is passed over in silence."""
    judge = Subs.judge

    def silent(self: Subs, key: str, shard: int, seq: int, subject: str, post: Post) -> Taking | None:
        taking = judge(self, key, shard, seq, subject, post)
        if taking is None or taking.gap is None:
            return taking
        took = taking.took
        return taking._replace(
            gap=None, took=type(took)(took.key, took.shard, took.seq, took.subject, took.n, took.count, 0)
        )

    patch.setattr(Subs, "judge", silent)


@guard(within=40)
def a_commit_moves_the_cursor(patch: Patch) -> None:
    """What was taken of topics is kept in memory, and is not part of the commit."""
    commit = Batch.commit

    def without(self: Batch, cursor: int, held: list[int], version: int, digest: bytes) -> Commit:
        self.changes = []
        return commit(self, cursor, held, version, digest)

    patch.setattr(Batch, "commit", without)


@guard(within=100)
def the_last_message_of_a_topic_stays(patch: Patch) -> None:
    """What removes old messages of topics removes the last one, too."""
    trim = Store.trim

    def all_of_it(self: Store, subject: str, before: int) -> int:
        return trim(self, subject, 1 << 60 if subject.startswith(TOPICS) else before)

    patch.setattr(Store, "trim", all_of_it)
    patch.setattr(store, "keeps_last", lambda subject: not subject.startswith(TOPICS))


@guard(within=600)
def positions_in_topics_stay(patch: Patch) -> None:
    """An undo takes a subscription back to where it was, although what came since is in the inbox."""

    def goes_back(back: Subs | None, now: Subs | None, removed: dict[str, Sub]) -> list[Sub]:
        before = back.by_key if back is not None else {}
        return [before[sub.key].copy() if sub.key in before else sub for sub in after_undo(back, now, removed)]

    patch.setattr("mielin_cells.log.undo.after_undo", goes_back)


@guard(within=100)
def gaps_of_other_systems_are_told(patch: Patch) -> None:
    """What another system has removed before it was read is passed over in silence."""

    def silent(subs: Subs, key: str, position: int, page: Page, most: int) -> PageTaking | None:
        taking = judge_page(subs, key, position, page, most)
        if taking is None or taking.gap is None or not taking.gap.last:
            return taking
        took = taking.took
        return taking._replace(
            gap=None, took=type(took)(took.key, took.shard, took.seq, took.subject, took.n, took.count, 0)
        )

    patch.setattr("mielin_cells.node.topics.foreign.judge_page", silent)


@guard(within=100)
def a_stream_of_its_name_may_be_another(patch: Patch) -> None:
    """A stream that another system deletes and makes anew counts as the same one."""

    def same(subs: Subs, key: str, position: int, page: Page, most: int) -> PageTaking | None:
        made = subs.by_key[key].marks[MADE]
        return judge_page(subs, key, position, page._replace(extent=page.extent._replace(made=made)), most)

    patch.setattr("mielin_cells.node.topics.foreign.judge_page", same)


@guard(within=300)
def what_is_passed_over_is_settled(patch: Patch) -> None:
    """Where a replica has nothing, there is nothing: a position goes on to the end of the stream without a word of its leader."""

    async def trusting(outside: Outside, pattern: str, after: int, made: int) -> Page:
        stream, subjects = split(pattern)
        messages = await outside.read(stream, subjects, after, PAGE)
        extent = await outside.extent(stream)
        if extent.made != made:
            return Page(extent, [])
        return Page(extent, messages, 0 if messages else extent.last)

    patch.setattr("mielin_cells.node.topics.outside.read_page", trusting)
