{# Written by `./dev docs --write` from imbrace_lake/query/views.py. #}
SELECT t.organization_id, t.conversation_id, t.episode, t.reply_number, t.contact_message_id,
       t.contact_at, t.contact_messages, t.reply_message_id, t.reply_at,
       t.reply_sender_id, t.reply_ms, t.reply_with_bots_message_id, t.reply_with_bots_at,
       t.reply_with_bots_role, t.reply_with_bots_ms,
       CASE WHEN t.reply_at IS NOT NULL THEN greatest((CAST(({{ imbrace_lake.days("t.local_end") }} - {{ imbrace_lake.days("t.local_end") }} % 7) / 7 AS BIGINT) * e.week_ms + e.before_ms + greatest(least({{ imbrace_lake.milliseconds("date_trunc('day', t.local_end)", "t.local_end") }}, e.closes_ms) - e.opens_ms, 0)) - (CAST(({{ imbrace_lake.days("t.local_start") }} - {{ imbrace_lake.days("t.local_start") }} % 7) / 7 AS BIGINT) * b.week_ms + b.before_ms + greatest(least({{ imbrace_lake.milliseconds("date_trunc('day', t.local_start)", "t.local_start") }}, b.closes_ms) - b.opens_ms, 0)), 0) END AS reply_business_ms
FROM (
    SELECT x.*, {{ imbrace_lake.local("x.contact_at", "s.time_zone") }} AS local_start,
           {{ imbrace_lake.local("x.reply_at", "s.time_zone") }} AS local_end
    FROM (
        SELECT w.*, row_number() OVER (PARTITION BY organization_id, conversation_id, episode ORDER BY replies_before) AS reply_number,
               {{ imbrace_lake.milliseconds("contact_at", "reply_at") }} AS reply_ms,
               {{ imbrace_lake.milliseconds("contact_at", "reply_with_bots_at") }} AS reply_with_bots_ms
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
                FROM {{ ref('turns') }}
            ) AS b
            GROUP BY organization_id, conversation_id, episode, replies_before
            HAVING count(CASE WHEN sender_role = 'contact' THEN 1 END) > 0
        ) AS w
    ) AS x CROSS JOIN {{ ref('settings') }} AS s
) AS t
LEFT JOIN {{ ref('business_hours') }} AS b ON b.weekday = {{ imbrace_lake.days("t.local_start") }} % 7 + 1
LEFT JOIN {{ ref('business_hours') }} AS e ON e.weekday = {{ imbrace_lake.days("t.local_end") }} % 7 + 1
