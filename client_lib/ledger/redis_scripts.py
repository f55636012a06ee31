"""Lua scripts of the Redis store. Each runs atomically, and may be repeated.

KEYS[1]  lock       the holder's token, with a time to live
KEYS[2]  spending   a hash: "<end>|<level>" -> trials, and "now" -> the latest time, in microseconds
KEYS[3]  draws      a sorted set: id of a charged draw -> end of its bucket
KEYS[4]  done       the token of the last holder whose changes were made, with a time to live

All keys of a subject share a hash tag, so they are on one node of a cluster.
"""

from __future__ import annotations

HOLD = """
-- ARGV: token, milliseconds to live. Returns what is kept, or false while somebody else holds the subject.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return false end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local seen = redis.call('HGET', KEYS[2], 'now')
if seen and tonumber(seen) > now then now = tonumber(seen) end
return {string.format('%.0f', now), redis.call('HGETALL', KEYS[2])}
"""
"""The server's clock, which never goes back."""

COMMIT = """
-- ARGV: token, now, forget before, number of entries, (field, trials)..., (end, id)...
-- Returns 1 if the changes are made, 0 if the subject was lost to somebody else; then nothing is changed.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  if redis.call('GET', KEYS[4]) == ARGV[1] then return 1 end
  return 0
end
local entries = tonumber(ARGV[4])
if ARGV[3] ~= '' then
  local before = tonumber(ARGV[3])
  for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
    local ends = string.match(field, '^(.+)|')
    if ends and ends ~= 'inf' and tonumber(ends) <= before then redis.call('HDEL', KEYS[2], field) end
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', ARGV[3])
end
for index = 0, entries - 1 do
  redis.call('HINCRBY', KEYS[2], ARGV[5 + 2 * index], ARGV[6 + 2 * index])
end
for index = 5 + 2 * entries, #ARGV, 2 do
  redis.call('ZADD', KEYS[3], ARGV[index], ARGV[index + 1])
end
local kept = redis.call('HLEN', KEYS[2]) - redis.call('HEXISTS', KEYS[2], 'now')
if kept > 0 or redis.call('ZCARD', KEYS[3]) > 0 then
  redis.call('HSET', KEYS[2], 'now', ARGV[2])
else
  redis.call('DEL', KEYS[2], KEYS[3])
end
redis.call('SET', KEYS[4], ARGV[1], 'PX', 120000)
redis.call('DEL', KEYS[1])
return 1
"""

ERASE = """
-- ARGV: token. Returns whether there was anything, or -1 if the subject was lost to somebody else.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  if redis.call('GET', KEYS[4]) == ARGV[1] then return 1 end
  return -1
end
local found = redis.call('DEL', KEYS[2], KEYS[3])
if found > 0 then redis.call('SET', KEYS[4], ARGV[1], 'PX', 120000) end
redis.call('DEL', KEYS[1])
return found > 0 and 1 or 0
"""

RELEASE = """
-- ARGV: token.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
"""
