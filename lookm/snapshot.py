"""An engine's statistics of this moment, gathered from its parts. Reads; changes nothing."""

from lookm.cache import PagePool
from lookm.parking import Parking
from lookm.runner import Runner
from lookm.scheduler import Scheduler
from lookm.totals import Totals
from lookm.types import EngineStats


def snapshot(
    pool: PagePool, parking: Parking, scheduler: Scheduler, runner: Runner, totals: Totals
) -> EngineStats:
    """Of the pool, the queues and the counters."""
    running, features, prompts = scheduler.running, runner.features, runner.prompts
    return EngineStats(
        capacity_bytes=pool.num_pages * pool.page_bytes,
        used_bytes=(pool.num_used - parking.num_pages) * pool.page_bytes,
        parked_bytes=parking.num_pages * pool.page_bytes,
        parked_conversations=len(parking),
        parked_hit_tokens_total=parking.hit_tokens,
        full_bytes=sum(seq.cache.full_bytes(len(seq.tokens)) for seq in running),
        running=len(running),
        waiting=len(scheduler.waiting),
        prompt_tokens_total=totals.prompt_tokens,
        image_tokens_total=totals.image_tokens,
        generated_tokens_total=totals.generated_tokens,
        decode_tokens_total=totals.decode_tokens,
        decode_s=totals.decode_s,
        preemptions_total=scheduler.num_preemptions,
        image_cache_queries_total=features.queries,
        image_cache_hits_total=features.hits,
        vision_encode_s=runner.encode_s,
        prompt_store_bytes=prompts.store.held_bytes,
        prompt_store_query_tokens_total=prompts.query_tokens,
        prompt_store_hit_tokens_total=prompts.hit_tokens,
        prompt_store_evictions_total=prompts.store.evictions,
        prompt_store_load_s=prompts.load_s,
        prompt_store_save_s=prompts.save_s,
        last_step_seconds=totals.last_step_s,
    )
