"""The rehearsal provider: a faithful fake of the Flux API, over real HTTP, with faults that repeat.

Nobody should buy images to find out what a service does when the seventh callback of the day is lost. So this process
speaks the API as CometAPI (`/flux/v1/…`) and Black Forest Labs (`/v1/…`) do, draws a real image for each task, serves
it from a signed URL that expires, calls back, and misbehaves exactly as much as it is told to:

- by flags, for the life of the process: `python -m deploy.rehearsal --port 9100 --callback-loss 0.1`;
- by `POST /_control {"callback_loss": 0.1}`, for whatever is submitted from then on (`GET` shows all knobs);
- by a mark in a prompt, for that task alone: `{"prompt": "a lighthouse [moderated]"}`.

Marks. Nothing is accepted: `[429]` `[5xx]` `[invalid-500]` `[html-answer]` `[301]` `[hang]`. Accepted, but the answer
is lost or wrong: `[drop-answer]` `[accept-hang]` `[accept-5xx]` `[same-id]`. How the task ends: `[moderated]`
`[error]` `[stuck]`. Its callback: `[lost]` `[twice]` `[reorder]` `[early]` `[forged]`. Its image: `[truncated]`
`[html]` `[oversized]` `[wrong-size]` `[drip]` `[redirect]` `[private-url]` `[expired]`.

Dice follow from `seed` and the number of the submission, so the same requests in the same order meet the same faults.
Ids are random: two runs of one seed share none.

`GET /_ledger` lists what was accepted and billed (`?id=`, `?prompt=`, `?model=` narrow it): the proof that nothing was
bought twice. `POST /_finish` ends all running tasks now; `POST /_reset` forgets everything and turns the knobs back
to the flags. A restart forgets all tasks, and their image URLs are dead, unless `--journal FILE` keeps them: then even
`kill -9` loses none, they run on from when they were accepted, and no URL lives shorter. Turned knobs are not kept.

One task's way through the files: `flux` (the routes) takes a `submission`, gives it `dice` and a fate from `control`,
and puts it on the desk of `tasks`, which notes it in the `journal`; `life` runs it; `letters` are sent by `callbacks`;
`gallery` serves what `pictures` draws with `art` and `brush`; `answers` and `replies` say it all as the provider would,
`wire` as no server should.
"""
