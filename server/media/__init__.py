"""Untrusted bytes: from the URLs and files of a request, images, documents and videos, to pictures.

**Threat model.** The URL, the host behind it, its DNS, every byte it sends and every picture in it
are chosen by an attacker who wants to (a) reach what only this machine can reach, (b) read files,
(c) take its memory, processor or sockets, or (d) break the image decoder.

  (a) Only http, https and data. Every address a name resolves to must be public; the connection
      goes to the address that was checked (no second look-up to rebind), with Host, SNI and
      certificate still those of the name; every redirect starts over. No proxy, .netrc or
      credential; cookies go back only to who set them with a redirect of the same download. Cloud
      metadata addresses are refused even where private ones are allowed.
  (b) No file scheme and no paths, ever.
  (c) One time limit around name, connection and a slow body; bytes counted as they arrive, per
      image, per request and for all; no content encodings; pixels and memory counted before
      decoding, from a header that we read ourselves; extreme shapes and endless JPEG scans
      refused; a bounded number of downloads and of decoders, shared fairly between requests.
  (d) Five formats of pictures, PDF and four containers of video, chosen by content and not by
      header or name, and FFmpeg is told which one; its codecs by a list; animated and truncated
      pictures, encrypted and truncated documents refused; whatever the decoder raises becomes a
      `MediaError`; what it warns of is not written.
      Decoders run in processes of their own (`sandbox`), under the system's limits of memory and
      processor time, and none of our keys in their environment.

What it does not promise: those processes are the same user's, and see the same files and network.

Knows nothing about HTTP requests to us, models or tokens. Logs nothing.
"""

from server.media.config import MediaConfig
from server.media.decode import silence_decoders
from server.media.documents import File, reads_pdf
from server.media.loaded import Known, LoadedImage
from server.media.loader import MediaLoader, Source
from server.media.media_error import MediaError
from server.media.videos import Video, reads_video

__all__ = [
    "File",
    "Known",
    "LoadedImage",
    "MediaConfig",
    "MediaError",
    "MediaLoader",
    "Source",
    "Video",
    "reads_pdf",
    "reads_video",
    "silence_decoders",
]
