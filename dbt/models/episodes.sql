{# Written by `./dev docs --write` from imbrace_lake/query/views.py. #}
SELECT t.organization_id, t.conversation_id, t.episode, t.started_at, t.ended_at, t.duration_ms,
       t.messages, t.contact_messages, t.user_messages, t.bot_messages, t.users, t.opened_by,
       t.closed_by, t.first_contact_at, t.first_contact_message_id, t.first_reply_at,
       t.first_reply_message_id, t.first_reply_with_bots_at,
       t.first_reply_with_bots_message_id, t.first_response_ms, t.first_response_with_bots_ms,
       CASE WHEN t.first_reply_at IS NOT NULL THEN greatest((CAST(({{ imbrace_lake.days("t.local_end") }} - {{ imbrace_lake.days("t.local_end") }} % 7) / 7 AS BIGINT) * e.week_ms + e.before_ms + greatest(least({{ imbrace_lake.milliseconds("date_trunc('day', t.local_end)", "t.local_end") }}, e.closes_ms) - e.opens_ms, 0)) - (CAST(({{ imbrace_lake.days("t.local_start") }} - {{ imbrace_lake.days("t.local_start") }} % 7) / 7 AS BIGINT) * b.week_ms + b.before_ms + greatest(least({{ imbrace_lake.milliseconds("date_trunc('day', t.local_start)", "t.local_start") }}, b.closes_ms) - b.opens_ms, 0)), 0) END AS first_response_business_ms
FROM (
    SELECT x.*, {{ imbrace_lake.local("x.first_contact_at", "s.time_zone") }} AS local_start,
           {{ imbrace_lake.local("x.first_reply_at", "s.time_zone") }} AS local_end
    FROM (
        SELECT e.*, {{ imbrace_lake.milliseconds("started_at", "ended_at") }} AS duration_ms,
               {{ imbrace_lake.milliseconds("first_contact_at", "first_reply_at") }} AS first_response_ms,
               {{ imbrace_lake.milliseconds("first_contact_at", "first_reply_with_bots_at") }}
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
            FROM {{ ref('turns') }} GROUP BY organization_id, conversation_id, episode
        ) AS e
    ) AS x CROSS JOIN {{ ref('settings') }} AS s
) AS t
LEFT JOIN {{ ref('business_hours') }} AS b ON b.weekday = {{ imbrace_lake.days("t.local_start") }} % 7 + 1
LEFT JOIN {{ ref('business_hours') }} AS e ON e.weekday = {{ imbrace_lake.days("t.local_end") }} % 7 + 1
