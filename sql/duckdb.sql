-- The views over a lake, written from imbrace_lake/query/views.py; see docs/views.md.
-- Change the folder `lake` in the sources, and the values in the views `settings`, `bots` and
-- `business_hours`.

CREATE OR REPLACE VIEW lake_messages AS
SELECT * FROM read_parquet('lake/messages/**/*.parquet');

CREATE OR REPLACE VIEW lake_conversations AS
SELECT * FROM read_parquet('lake/conversations/**/*.parquet');

CREATE OR REPLACE VIEW lake_phones AS
SELECT * FROM read_parquet('lake/phones/**/*.parquet');

-- The settings of the views, in one row: the time zone of days, weeks and hours; the silence in milliseconds
-- after which a new episode begins; about how many characters a document has.
CREATE OR REPLACE VIEW settings AS
SELECT 'UTC' AS time_zone, CAST(86400000 AS BIGINT) AS gap_ms,
       CAST(4000 AS BIGINT) AS document_characters;

-- Senders that are bots, besides those whose id begins with pub_.
CREATE OR REPLACE VIEW bots AS
SELECT CAST(NULL AS VARCHAR) AS sender_id WHERE 1 = 0;

-- When the business is open, for each weekday from Monday (1) to Sunday (7): milliseconds since midnight, in
-- local time; opens_ms = closes_ms for a closed day. A day has one span, which does not pass midnight; breaks
-- and holidays are open. before_ms is the open time of the week before this day, week_ms that of the week.
CREATE OR REPLACE VIEW business_hours AS
SELECT 1 AS weekday, CAST(32400000 AS BIGINT) AS opens_ms, CAST(64800000 AS BIGINT) AS closes_ms, CAST(0 AS BIGINT) AS before_ms, CAST(162000000 AS BIGINT) AS week_ms
UNION ALL SELECT 2 AS weekday, CAST(32400000 AS BIGINT) AS opens_ms, CAST(64800000 AS BIGINT) AS closes_ms, CAST(32400000 AS BIGINT) AS before_ms, CAST(162000000 AS BIGINT) AS week_ms
UNION ALL SELECT 3 AS weekday, CAST(32400000 AS BIGINT) AS opens_ms, CAST(64800000 AS BIGINT) AS closes_ms, CAST(64800000 AS BIGINT) AS before_ms, CAST(162000000 AS BIGINT) AS week_ms
UNION ALL SELECT 4 AS weekday, CAST(32400000 AS BIGINT) AS opens_ms, CAST(64800000 AS BIGINT) AS closes_ms, CAST(97200000 AS BIGINT) AS before_ms, CAST(162000000 AS BIGINT) AS week_ms
UNION ALL SELECT 5 AS weekday, CAST(32400000 AS BIGINT) AS opens_ms, CAST(64800000 AS BIGINT) AS closes_ms, CAST(129600000 AS BIGINT) AS before_ms, CAST(162000000 AS BIGINT) AS week_ms
UNION ALL SELECT 6 AS weekday, CAST(0 AS BIGINT) AS opens_ms, CAST(0 AS BIGINT) AS closes_ms, CAST(162000000 AS BIGINT) AS before_ms, CAST(162000000 AS BIGINT) AS week_ms
UNION ALL SELECT 7 AS weekday, CAST(0 AS BIGINT) AS opens_ms, CAST(0 AS BIGINT) AS closes_ms, CAST(162000000 AS BIGINT) AS before_ms, CAST(162000000 AS BIGINT) AS week_ms;

-- Every message of the lake, deleted ones included (is_deleted). A sender whose id begins with pub_, or that
-- is in bots, has the role bot. is_machine: a bot's text that is nothing but JSON, an object or a list of
-- objects or texts; no customer saw it. local_at: created_at in the time zone of the settings. Internal notes
-- of the team are not messages: they are in extra, under comments.
CREATE OR REPLACE VIEW messages AS
SELECT m.message_id, m.conversation_id, m.organization_id, m.business_unit_id, m.sender_id, m.role AS sender_role, m.type, m.text, m.content, m.created_at, m.updated_at, m.extra, m.is_deleted, m.deleted_at, m.first_seen_at, m.last_changed_at, m.run_id,
       CAST(coalesce(m.role = 'bot' AND (m.bare LIKE '{%}' OR m.bare LIKE '[{%}]' OR m.bare LIKE '["%"]' OR m.bare = '[]'), false) AS BOOLEAN) AS is_machine,
       m.created_at AT TIME ZONE s.time_zone AS local_at
FROM (
    SELECT raw.*, trim(BOTH ' ' FROM replace(replace(replace(replace(replace(replace(raw.text, chr(9), ' '), chr(10), ' '), chr(13), ' '), chr(160), ' '), chr(12288), ' '), chr(65279), ' ')) AS bare,
           CASE WHEN substr(raw.sender_id, 1, 4) = 'pub_' OR b.sender_id IS NOT NULL THEN 'bot'
                ELSE raw.sender_role END AS role
    FROM lake_messages AS raw LEFT JOIN bots AS b ON b.sender_id = raw.sender_id
) AS m
CROSS JOIN settings AS s;

-- The messages that a customer saw or wrote, in order of created_at and message_id: of contacts, users
-- (persons of the team) and bots; without deleted and machine messages, unknown senders, and messages without
-- a time. A silence longer than gap_ms begins a new episode. turn_number counts the messages of an episode;
-- contacts_so_far those of the contact up to this one; replies_before the messages of persons before this
-- one. A deleted message is left out, though it was there when it was answered: times can change when
-- something is deleted.
CREATE OR REPLACE VIEW turns AS
WITH spoken AS (
    SELECT m.organization_id, m.conversation_id, m.message_id, m.sender_id, m.sender_role, m.type,
           m.text, m.content, m.created_at, m.local_at,
           lag(m.created_at) OVER (
               PARTITION BY m.organization_id, m.conversation_id ORDER BY m.created_at, m.message_id
           ) AS previous_at
    FROM messages AS m
    WHERE NOT m.is_deleted AND NOT m.is_machine AND m.created_at IS NOT NULL
      AND m.sender_role IN ('contact', 'user', 'bot')
),
numbered AS (
    SELECT spoken.*,
           1 + count(CASE WHEN date_diff('millisecond', previous_at, created_at) > s.gap_ms THEN 1 END) OVER (
               PARTITION BY organization_id, conversation_id ORDER BY created_at, message_id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS episode
    FROM spoken CROSS JOIN settings AS s
)
SELECT organization_id, conversation_id, episode,
       row_number() OVER (PARTITION BY organization_id, conversation_id, episode ORDER BY created_at, message_id) AS turn_number,
       message_id, sender_id, sender_role, type, text, content, created_at, local_at,
       count(CASE WHEN sender_role = 'contact' THEN 1 END)
           OVER (PARTITION BY organization_id, conversation_id, episode ORDER BY created_at, message_id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
           AS contacts_so_far,
       count(CASE WHEN sender_role = 'user' THEN 1 END)
           OVER (PARTITION BY organization_id, conversation_id, episode ORDER BY created_at, message_id
                 ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS replies_before
FROM numbered;

-- One row for each episode of a conversation: messages with no silence longer than gap_ms between them.
-- first_response_ms: the clock starts at the contact's first message of the episode and stops at the first
-- reply after it by a person; bots, machine messages and internal notes do not stop it. Null: no person
-- replied in this episode, or the contact did not write. first_response_business_ms counts only business
-- hours. first_response_with_bots_ms: the same clock, which a bot's reply stops too. users: distinct persons
-- who wrote. duration_ms is the time from the first message to the last, and not handling time.
CREATE OR REPLACE VIEW episodes AS
SELECT t.organization_id, t.conversation_id, t.episode, t.started_at, t.ended_at, t.duration_ms,
       t.messages, t.contact_messages, t.user_messages, t.bot_messages, t.users, t.opened_by,
       t.closed_by, t.first_contact_at, t.first_contact_message_id, t.first_reply_at,
       t.first_reply_message_id, t.first_reply_with_bots_at,
       t.first_reply_with_bots_message_id, t.first_response_ms, t.first_response_with_bots_ms,
       CASE WHEN t.first_reply_at IS NOT NULL THEN greatest((CAST((date_diff('day', DATE '1899-12-25', CAST(t.local_end AS DATE)) - date_diff('day', DATE '1899-12-25', CAST(t.local_end AS DATE)) % 7) / 7 AS BIGINT) * e.week_ms + e.before_ms + greatest(least(date_diff('millisecond', date_trunc('day', t.local_end), t.local_end), e.closes_ms) - e.opens_ms, 0)) - (CAST((date_diff('day', DATE '1899-12-25', CAST(t.local_start AS DATE)) - date_diff('day', DATE '1899-12-25', CAST(t.local_start AS DATE)) % 7) / 7 AS BIGINT) * b.week_ms + b.before_ms + greatest(least(date_diff('millisecond', date_trunc('day', t.local_start), t.local_start), b.closes_ms) - b.opens_ms, 0)), 0) END AS first_response_business_ms
FROM (
    SELECT x.*, x.first_contact_at AT TIME ZONE s.time_zone AS local_start,
           x.first_reply_at AT TIME ZONE s.time_zone AS local_end
    FROM (
        SELECT e.*, date_diff('millisecond', started_at, ended_at) AS duration_ms,
               date_diff('millisecond', first_contact_at, first_reply_at) AS first_response_ms,
               date_diff('millisecond', first_contact_at, first_reply_with_bots_at)
                   AS first_response_with_bots_ms
        FROM (
            SELECT organization_id, conversation_id, episode, min(created_at) AS started_at,
                   max(created_at) AS ended_at, count(*) AS messages,
                   count(CASE WHEN sender_role = 'contact' THEN 1 END) AS contact_messages,
                   count(CASE WHEN sender_role = 'user' THEN 1 END) AS user_messages,
                   count(CASE WHEN sender_role = 'bot' THEN 1 END) AS bot_messages,
                   count(DISTINCT CASE WHEN sender_role = 'user' THEN sender_id END) AS users,
                   min_by(sender_role, turn_number) AS opened_by,
                   max_by(sender_role, turn_number) AS closed_by,
                   min(CASE WHEN sender_role = 'contact' THEN created_at END) AS first_contact_at,
                   min_by(message_id, CASE WHEN sender_role = 'contact' THEN turn_number END) AS first_contact_message_id,
                   min(CASE WHEN sender_role = 'user' AND contacts_so_far > 0 THEN created_at END) AS first_reply_at,
                   min_by(message_id, CASE WHEN sender_role = 'user' AND contacts_so_far > 0 THEN turn_number END) AS first_reply_message_id,
                   min(CASE WHEN sender_role IN ('user', 'bot') AND contacts_so_far > 0 THEN created_at END) AS first_reply_with_bots_at,
                   min_by(message_id, CASE WHEN sender_role IN ('user', 'bot') AND contacts_so_far > 0 THEN turn_number END)
                       AS first_reply_with_bots_message_id
            FROM turns GROUP BY organization_id, conversation_id, episode
        ) AS e
    ) AS x CROSS JOIN settings AS s
) AS t
LEFT JOIN business_hours AS b ON b.weekday = date_diff('day', DATE '1899-12-25', CAST(t.local_start AS DATE)) % 7 + 1
LEFT JOIN business_hours AS e ON e.weekday = date_diff('day', DATE '1899-12-25', CAST(t.local_end AS DATE)) % 7 + 1;

-- One row for each wait of a contact: from the contact's first message that no person has answered yet to the
-- next message of a person in the same episode, with the ids of both. Without a reply, the reply's columns
-- are null. reply_business_ms counts only business hours. The columns with bots have the first message of a
-- person or a bot instead.
CREATE OR REPLACE VIEW replies AS
SELECT t.organization_id, t.conversation_id, t.episode, t.reply_number, t.contact_message_id,
       t.contact_at, t.contact_messages, t.reply_message_id, t.reply_at,
       t.reply_sender_id, t.reply_ms, t.reply_with_bots_message_id, t.reply_with_bots_at,
       t.reply_with_bots_role, t.reply_with_bots_ms,
       CASE WHEN t.reply_at IS NOT NULL THEN greatest((CAST((date_diff('day', DATE '1899-12-25', CAST(t.local_end AS DATE)) - date_diff('day', DATE '1899-12-25', CAST(t.local_end AS DATE)) % 7) / 7 AS BIGINT) * e.week_ms + e.before_ms + greatest(least(date_diff('millisecond', date_trunc('day', t.local_end), t.local_end), e.closes_ms) - e.opens_ms, 0)) - (CAST((date_diff('day', DATE '1899-12-25', CAST(t.local_start AS DATE)) - date_diff('day', DATE '1899-12-25', CAST(t.local_start AS DATE)) % 7) / 7 AS BIGINT) * b.week_ms + b.before_ms + greatest(least(date_diff('millisecond', date_trunc('day', t.local_start), t.local_start), b.closes_ms) - b.opens_ms, 0)), 0) END AS reply_business_ms
FROM (
    SELECT x.*, x.contact_at AT TIME ZONE s.time_zone AS local_start,
           x.reply_at AT TIME ZONE s.time_zone AS local_end
    FROM (
        SELECT w.*, row_number() OVER (PARTITION BY organization_id, conversation_id, episode ORDER BY replies_before) AS reply_number,
               date_diff('millisecond', contact_at, reply_at) AS reply_ms,
               date_diff('millisecond', contact_at, reply_with_bots_at) AS reply_with_bots_ms
        FROM (
            SELECT organization_id, conversation_id, episode, replies_before,
                   min_by(message_id, CASE WHEN sender_role = 'contact' THEN turn_number END) AS contact_message_id,
                   min(CASE WHEN sender_role = 'contact' THEN created_at END) AS contact_at,
                   count(CASE WHEN sender_role = 'contact' THEN 1 END) AS contact_messages,
                   min_by(message_id, CASE WHEN sender_role = 'user' THEN turn_number END) AS reply_message_id,
                   min(CASE WHEN sender_role = 'user' THEN created_at END) AS reply_at,
                   min_by(sender_id, CASE WHEN sender_role = 'user' THEN turn_number END) AS reply_sender_id,
                   min_by(message_id, CASE WHEN sender_role IN ('user', 'bot') AND waiting > 0 THEN turn_number END) AS reply_with_bots_message_id,
                   min(CASE WHEN sender_role IN ('user', 'bot') AND waiting > 0 THEN created_at END) AS reply_with_bots_at,
                   min_by(sender_role, CASE WHEN sender_role IN ('user', 'bot') AND waiting > 0 THEN turn_number END) AS reply_with_bots_role
            FROM (
                SELECT turns.*, count(CASE WHEN sender_role = 'contact' THEN 1 END) OVER (
                           PARTITION BY organization_id, conversation_id, episode, replies_before ORDER BY turn_number ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
                       ) AS waiting
                FROM turns
            ) AS b
            GROUP BY organization_id, conversation_id, episode, replies_before
            HAVING count(CASE WHEN sender_role = 'contact' THEN 1 END) > 0
        ) AS w
    ) AS x CROSS JOIN settings AS s
) AS t
LEFT JOIN business_hours AS b ON b.weekday = date_diff('day', DATE '1899-12-25', CAST(t.local_start AS DATE)) % 7 + 1
LEFT JOIN business_hours AS e ON e.weekday = date_diff('day', DATE '1899-12-25', CAST(t.local_end AS DATE)) % 7 + 1;

-- First responses by week, for each organization: episodes in which the contact wrote, by the local week
-- (from Monday) of the contact's first message; how many a person answered, and the share that no person
-- answered; median and 90th percentile of the answered ones. A percentile is the smallest value that at least
-- this share of the values do not exceed. The same with bots, and in business hours. Episodes that have just
-- begun count as unanswered.
CREATE OR REPLACE VIEW response_times AS
WITH started AS (
    SELECT e.*, CAST(date_trunc('week', e.first_contact_at AT TIME ZONE s.time_zone) AS DATE) AS week_start
    FROM episodes AS e CROSS JOIN settings AS s WHERE e.first_contact_at IS NOT NULL
),
ranked AS (
    SELECT started.*,
           row_number() OVER (
               PARTITION BY organization_id, week_start ORDER BY first_response_ms NULLS LAST
           ) AS rank,
           count(first_response_ms) OVER (PARTITION BY organization_id, week_start) AS answered,
           row_number() OVER (
               PARTITION BY organization_id, week_start ORDER BY first_response_with_bots_ms NULLS LAST
           ) AS rank_with_bots,
           count(first_response_with_bots_ms) OVER (PARTITION BY organization_id, week_start) AS answered_with_bots,
           row_number() OVER (
               PARTITION BY organization_id, week_start ORDER BY first_response_business_ms NULLS LAST
           ) AS rank_business,
           count(first_response_business_ms) OVER (PARTITION BY organization_id, week_start) AS answered_business
    FROM started
)
SELECT organization_id, week_start, count(*) AS episodes, count(first_response_ms) AS answered,
       1 - CAST(count(first_response_ms) AS DOUBLE) / count(*) AS share_unanswered,
       count(first_response_with_bots_ms) AS answered_with_bots,
       1 - CAST(count(first_response_with_bots_ms) AS DOUBLE) / count(*)
           AS share_unanswered_with_bots,
       min(CASE WHEN rank * 100 >= answered * 50 THEN first_response_ms END)
           AS median_ms,
       min(CASE WHEN rank * 100 >= answered * 90 THEN first_response_ms END)
           AS p90_ms,
       min(CASE WHEN rank_with_bots * 100 >= answered_with_bots * 50 THEN first_response_with_bots_ms END)
           AS median_with_bots_ms,
       min(CASE WHEN rank_with_bots * 100 >= answered_with_bots * 90 THEN first_response_with_bots_ms END)
           AS p90_with_bots_ms,
       min(CASE WHEN rank_business * 100 >= answered_business * 50 THEN first_response_business_ms END)
           AS median_business_ms,
       min(CASE WHEN rank_business * 100 >= answered_business * 90 THEN first_response_business_ms END)
           AS p90_business_ms
FROM ranked GROUP BY organization_id, week_start;

-- Messages that are not deleted by local day, for each organization, by role; machine messages count as those
-- and not as the bot's. conversations: those with a message on this day; new_conversations: those whose first
-- message is of this day. The row without a day counts messages without a readable time.
CREATE OR REPLACE VIEW daily_volumes AS
WITH dated AS (
    SELECT organization_id, conversation_id, sender_role, is_machine, CAST(local_at AS DATE) AS day,
           CASE WHEN row_number() OVER (
               PARTITION BY organization_id, conversation_id ORDER BY created_at NULLS LAST, message_id
           ) = 1 THEN 1 END AS is_first
    FROM messages WHERE NOT is_deleted
)
SELECT organization_id, day, count(*) AS messages,
       count(CASE WHEN sender_role = 'contact' THEN 1 END) AS contact_messages,
       count(CASE WHEN sender_role = 'user' THEN 1 END) AS user_messages,
       count(CASE WHEN sender_role = 'bot' AND NOT is_machine THEN 1 END) AS bot_messages,
       count(CASE WHEN is_machine THEN 1 END) AS machine_messages,
       count(CASE WHEN sender_role NOT IN ('contact', 'user', 'bot') THEN 1 END) AS unknown_messages,
       count(DISTINCT conversation_id) AS conversations, count(is_first) AS new_conversations
FROM dated GROUP BY organization_id, day;

-- Messages of contacts by local weekday, from Monday (1) to Sunday (7), and hour of the day (0 to 23), for
-- each organization. An hour without any has no row.
CREATE OR REPLACE VIEW busiest_hours AS
SELECT organization_id, date_diff('day', DATE '1899-12-25', CAST(local_at AS DATE)) % 7 + 1 AS weekday,
       CAST(extract(hour FROM local_at) AS BIGINT) AS hour_of_day,
       count(*) AS contact_messages, count(DISTINCT conversation_id) AS conversations
FROM messages
WHERE NOT is_deleted AND sender_role = 'contact' AND local_at IS NOT NULL
GROUP BY organization_id, date_diff('day', DATE '1899-12-25', CAST(local_at AS DATE)) % 7 + 1,
         CAST(extract(hour FROM local_at) AS BIGINT);

-- What followed each offer of quick replies in its episode, for each organization: the contact picked one,
-- typed something instead, the next message of a person or bot overtook it, or the episode ended.
CREATE OR REPLACE VIEW quick_reply_funnel AS
SELECT organization_id, count(*) AS offers,
       count(CASE WHEN next_role = 'contact' AND next_type = 'quick_reply' THEN 1 END) AS picked,
       count(CASE WHEN next_role = 'contact' AND coalesce(next_type, '') <> 'quick_reply' THEN 1 END)
           AS typed_instead,
       count(CASE WHEN next_role IN ('user', 'bot') THEN 1 END) AS overtaken,
       count(CASE WHEN next_role IS NULL THEN 1 END) AS ended
FROM (
    SELECT organization_id, sender_role, content,
           lead(type) OVER (PARTITION BY organization_id, conversation_id, episode ORDER BY turn_number) AS next_type,
           lead(sender_role) OVER (PARTITION BY organization_id, conversation_id, episode ORDER BY turn_number) AS next_role
    FROM turns
) AS t
WHERE sender_role IN ('user', 'bot') AND content LIKE '%"quick_replies":[{%'
GROUP BY organization_id;

-- One row for each conversation of the lake or of the ledger: messages that are not deleted by role, deleted
-- ones, first and last; its episodes, those in which the contact wrote, and those that a person answered.
-- first_response_ms: the first response of the first episode in which the contact wrote; null if no person
-- replied in it. longest_first_response_ms: the longest of all. is_waiting: the last message is the
-- contact's. The verdict is the last entry of the ledger that is not about a window of time: status,
-- proof_method, is_dead_letter, reason, server_count, and when (verified_at).
CREATE OR REPLACE VIEW conversations AS
WITH counted AS (
    SELECT organization_id, conversation_id, count(CASE WHEN NOT is_deleted THEN 1 END) AS messages,
           count(CASE WHEN is_deleted THEN 1 END) AS deleted_messages,
           count(CASE WHEN NOT is_deleted AND sender_role = 'contact' THEN 1 END) AS contact_messages,
           count(CASE WHEN NOT is_deleted AND sender_role = 'user' THEN 1 END) AS user_messages,
           count(CASE WHEN NOT is_deleted AND sender_role = 'bot' AND NOT is_machine THEN 1 END) AS bot_messages,
           count(CASE WHEN NOT is_deleted AND is_machine THEN 1 END) AS machine_messages,
           count(CASE WHEN NOT is_deleted AND sender_role NOT IN ('contact', 'user', 'bot') THEN 1 END) AS unknown_messages,
           min(CASE WHEN NOT is_deleted THEN created_at END) AS first_message_at,
           max(CASE WHEN NOT is_deleted THEN created_at END) AS last_message_at
    FROM messages GROUP BY organization_id, conversation_id
),
answered AS (
    SELECT organization_id, conversation_id, count(*) AS episodes,
           count(first_contact_at) AS contact_episodes, count(first_response_ms) AS answered_episodes,
           max(CASE WHEN contact_rank = 1 THEN first_response_ms END) AS first_response_ms,
           max(first_response_ms) AS longest_first_response_ms,
           max_by(closed_by, episode) AS last_role
    FROM (
        SELECT e.*, row_number() OVER (
                   PARTITION BY organization_id, conversation_id
                   ORDER BY CASE WHEN first_contact_at IS NULL THEN 1 ELSE 0 END, episode
               ) AS contact_rank
        FROM episodes AS e
    ) AS r
    GROUP BY organization_id, conversation_id
),
verdicts AS (
    SELECT c.*, row_number() OVER (
               PARTITION BY organization_id, conversation_id ORDER BY finished_at DESC NULLS LAST, run_id DESC
           ) AS newest
    FROM lake_conversations AS c WHERE coalesce(proof_method, '') <> 'window'
)
SELECT coalesce(m.organization_id, v.organization_id) AS organization_id,
       coalesce(m.conversation_id, v.conversation_id) AS conversation_id,
       coalesce(m.messages, 0) AS messages, coalesce(m.deleted_messages, 0) AS deleted_messages, coalesce(m.contact_messages, 0) AS contact_messages, coalesce(m.user_messages, 0) AS user_messages, coalesce(m.bot_messages, 0) AS bot_messages, coalesce(m.machine_messages, 0) AS machine_messages, coalesce(m.unknown_messages, 0) AS unknown_messages,
       m.first_message_at AS first_message_at, m.last_message_at AS last_message_at, e.last_role,
       CAST(coalesce(e.last_role = 'contact', false) AS BOOLEAN) AS is_waiting,
       coalesce(e.episodes, 0) AS episodes, coalesce(e.contact_episodes, 0) AS contact_episodes, coalesce(e.answered_episodes, 0) AS answered_episodes, e.first_response_ms, e.longest_first_response_ms,
       v.status, v.proof_method, v.is_dead_letter, v.reason, v.server_count,
       v.finished_at AS verified_at
FROM counted AS m
FULL JOIN (SELECT * FROM verdicts WHERE newest = 1) AS v
  ON v.organization_id = m.organization_id AND v.conversation_id = m.conversation_id
LEFT JOIN answered AS e
  ON e.organization_id = m.organization_id AND e.conversation_id = m.conversation_id;

-- The latest answer for each phone number: its status and its conversations. A request that failed is not an
-- answer: the status error is that of a number for which no request has succeeded. Earlier answers, which can
-- name other conversations, are in the ledger. Invalid numbers have no hash and are left out.
CREATE OR REPLACE VIEW phones AS
SELECT organization_id, phone_hash, phone_masked, phone, status, reason, conversation_ids,
       resolved_at, run_id
FROM (
    SELECT p.*, row_number() OVER (
               PARTITION BY organization_id, phone_hash
               ORDER BY CASE WHEN status = 'error' THEN 1 ELSE 0 END,
                        resolved_at DESC NULLS LAST, run_id DESC, position
           ) AS newest
    FROM lake_phones AS p WHERE status <> 'duplicate' AND phone_hash IS NOT NULL
) AS t
WHERE newest = 1;

-- Texts for search and language models: an episode as lines of time, role and text, cut between messages into
-- chunks of about document_characters characters. A message without a text is its type in brackets. Texts are
-- as they were written, and can contain personal data.
CREATE OR REPLACE VIEW documents AS
WITH spoken AS (
    SELECT t.*, substr(CAST(local_at AS VARCHAR), 1, 16) || ' ' || sender_role || ': '
                || coalesce(text, '[' || coalesce(type, 'message') || ']') AS line
    FROM turns AS t
),
placed AS (
    SELECT spoken.*, coalesce(CAST(sum(length(line)) OVER (
               PARTITION BY organization_id, conversation_id, episode ORDER BY turn_number
               ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS BIGINT), 0) AS begins
    FROM spoken
),
chunked AS (
    SELECT placed.*,
           1 + CAST((begins - begins % s.document_characters) / s.document_characters AS BIGINT)
               AS chunk
    FROM placed CROSS JOIN settings AS s
)
SELECT organization_id, conversation_id, episode, chunk, min(created_at) AS started_at,
       max(created_at) AS ended_at, count(*) AS messages,
       min_by(message_id, turn_number) AS first_message_id,
       max_by(message_id, turn_number) AS last_message_id,
       string_agg(line, chr(10) ORDER BY turn_number) AS text
FROM chunked GROUP BY organization_id, conversation_id, episode, chunk;
