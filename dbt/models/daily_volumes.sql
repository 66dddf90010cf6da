{# Written by `./dev docs --write` from imbrace_lake/query/views.py. #}
WITH dated AS (
    SELECT organization_id, conversation_id, sender_role, is_machine, CAST(local_at AS DATE) AS day,
           CASE WHEN row_number() OVER (
               PARTITION BY organization_id, conversation_id ORDER BY created_at NULLS LAST, message_id
           ) = 1 THEN 1 END AS is_first
    FROM {{ ref('messages') }} WHERE NOT is_deleted
)
SELECT organization_id, day, count(*) AS messages,
       count(CASE WHEN sender_role = 'contact' THEN 1 END) AS contact_messages,
       count(CASE WHEN sender_role = 'user' THEN 1 END) AS user_messages,
       count(CASE WHEN sender_role = 'bot' AND NOT is_machine THEN 1 END) AS bot_messages,
       count(CASE WHEN is_machine THEN 1 END) AS machine_messages,
       count(CASE WHEN sender_role NOT IN ('contact', 'user', 'bot') THEN 1 END) AS unknown_messages,
       count(DISTINCT conversation_id) AS conversations, count(is_first) AS new_conversations
FROM dated GROUP BY organization_id, day
