{# Written by `./dev docs --write` from imbrace_lake/query/views.py. #}
WITH spoken AS (
    SELECT m.organization_id, m.conversation_id, m.message_id, m.sender_id, m.sender_role, m.type,
           m.text, m.content, m.created_at, m.local_at,
           lag(m.created_at) OVER (
               PARTITION BY m.organization_id, m.conversation_id ORDER BY m.created_at, m.message_id
           ) AS previous_at
    FROM {{ ref('messages') }} AS m
    WHERE NOT m.is_deleted AND NOT m.is_machine AND m.created_at IS NOT NULL
      AND m.sender_role IN ('contact', 'user', 'bot')
),
numbered AS (
    SELECT spoken.*,
           1 + count(CASE WHEN {{ imbrace_lake.milliseconds("previous_at", "created_at") }} > s.gap_ms THEN 1 END) OVER (
               PARTITION BY organization_id, conversation_id ORDER BY created_at, message_id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS episode
    FROM spoken CROSS JOIN {{ ref('settings') }} AS s
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
FROM numbered
